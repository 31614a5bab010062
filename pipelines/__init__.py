"""The verbs of a model's life, one file each; the `verticals` command calls them, and so can a notebook."""
