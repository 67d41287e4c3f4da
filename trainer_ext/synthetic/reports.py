PAGE = "suite.md"
def write_reports(folder, plan, finished, versions):
    (folder / PAGE).write_text("\n")
