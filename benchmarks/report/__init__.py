"""Records joined into one page and one Markdown file. Read `build.py` first.

Every number comes from a record that was given, or is quoted from a paper and says so; what no record tells is listed as
missing, with the reason.
"""
