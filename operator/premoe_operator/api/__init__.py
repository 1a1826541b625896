"""What the outside says and hears: PrunedModel, the release file, reasons of conditions."""
