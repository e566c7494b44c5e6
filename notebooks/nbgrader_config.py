# nbgrader's settings for a class with these exercises; notebooks/TEACHING.md tells how to use them.
c = get_config()  # noqa: F821 - nbgrader's
c.ClearSolutions.code_stub = {"python": "..."}  # as in notebooks/exercises, so that each copy runs
c.Execute.timeout = 120  # seconds a cell; nbgrader's 30 are few on a busy server
c.Execute.iopub_timeout = 60  # seconds for the outputs of a cell to arrive; likewise its 4
