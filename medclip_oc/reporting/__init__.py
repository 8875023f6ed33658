"""Plain dicts to pages: a run's report and an audit's page, as one HTML file each. No torch here.

`run_page` and `audit_page` turn records into rows and charts (`plots`); `templates/` says how a
page looks, and `html` fills it in. `results` is the same record as text for a terminal.
"""
