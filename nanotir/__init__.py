"""nanotir: tool-integrated reasoning, small enough to read."""
