"""Property tests hold on a slow machine too: no example has a deadline."""

from hypothesis import settings

settings.register_profile("any machine", settings(deadline=None))
settings.load_profile("any machine")
