"""Pages for people: one self-contained HTML file each, which loads nothing and prints as it is.

What the demo's page and a model's report share: layout, colours, charts and ways to write numbers.
No torch here, so that a gateway can render a report.
"""
