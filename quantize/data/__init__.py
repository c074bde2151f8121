"""Data sets for the training side: checked, framed by the runtime's own code, or drawn procedurally."""
