"""What these operations refuse: operation -> (good arguments, tables of what may be wrong); see test_bad_input."""

OPERATIONS = {}
