"""The verbs: each method is one act that authorises, loads, decides by `core`, changes and records, and
commits once.

Services know `core`, `store` and `ports`; they know no web framework, no settings and no vendor library.
"""
