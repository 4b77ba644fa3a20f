"""The generated tables of README.md and docs/, by name.

accuracy    comparisons on one data set: losses, radii, corrections of the head, few-shot, geometry
costs       the time and memory of steps and of other work
formatting  tables, percentages and the line that says how a result was made
evidence    the study on five tasks
reference   methods, losses, options, citations and configs, from their definitions
"""
