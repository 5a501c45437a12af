"""The door: parse, call, print. Imported by nobody."""
