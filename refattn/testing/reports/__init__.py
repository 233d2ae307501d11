"""The forms that a `Report` takes: text for a terminal, a page, JSON for programs, JUnit XML for test services.

Each form is a module of its own, loaded when it is asked for: `Report.to_html`, `Report.to_json`, `Report.to_junit`,
and `str(report)`.
"""
