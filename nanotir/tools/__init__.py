from nanotir.tools.python import PythonTool
from nanotir.tools.search import SearchTool
from nanotir.tools.tool import STATUSES, DeadTool, Tool, ToolResult, check_alive

__all__ = ["STATUSES", "DeadTool", "PythonTool", "SearchTool", "Tool", "ToolResult", "check_alive"]
