"""HTML pages that a person looks at: one file each, complete in itself. The facts on them come from below."""
