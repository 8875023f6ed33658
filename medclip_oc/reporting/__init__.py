"""Plain dicts to pages: a run's report and an audit's page. No torch here."""
