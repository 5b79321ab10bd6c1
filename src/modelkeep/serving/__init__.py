"""The data plane: one process that supervises, a few that speak HTTP, and one per model version that
predicts.

It knows the core and nothing of the control plane's insides: no database, no registry, no controller is
needed to answer a request or to take a version back.
"""
