"""Other libraries' attention, by their own names and conventions, computed by the reference: a module per library."""
