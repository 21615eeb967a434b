from nanotir.tools.python import PythonTool
from nanotir.tools.search import SearchTool
from nanotir.tools.tool import STATUSES, DeadTool, Tool, ToolResult, check_alive

# A new tool is its class and a row here. Its settings, if any, are a section of config.RunConfig.
TOOLS: dict[str, type[Tool]] = {"python": PythonTool, "search": SearchTool}

__all__ = [
    "STATUSES",
    "TOOLS",
    "DeadTool",
    "PythonTool",
    "SearchTool",
    "Tool",
    "ToolResult",
    "check_alive",
]
