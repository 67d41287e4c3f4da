"""The tabs of the page, one file each: a TITLE, and build(models), which lays it out and binds its events."""
