"""`premoe doctor`: facts are gathered (``facts``), judged (``rules``, pure), and shown."""
