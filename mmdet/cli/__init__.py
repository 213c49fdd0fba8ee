"""The command line: one module a verb, and what their options have in common."""
