"""nanotir: tool-integrated reasoning, from random weights to a policy that calls its tools. Read README.md first."""
