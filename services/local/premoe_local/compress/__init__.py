"""What `premoe compress` adds to the runtime's methods: options, progress, tables."""
