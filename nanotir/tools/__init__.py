from nanotir.tools.python import PythonTool
from nanotir.tools.search import SearchTool
from nanotir.tools.tool import STATUSES, Tool, ToolResult

__all__ = ["STATUSES", "PythonTool", "SearchTool", "Tool", "ToolResult"]
