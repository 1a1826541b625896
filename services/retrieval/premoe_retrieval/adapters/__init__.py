"""Vector indexes behind the PatternIndex port."""
