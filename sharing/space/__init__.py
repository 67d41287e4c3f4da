"""The page that app.py opens: one file a tab."""
