"""Rules of recognition beside each other, on requests in many wordings and on strangers."""
