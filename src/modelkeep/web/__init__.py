"""The request's face: routes, decoding, answers. It decides nothing that a service could decide."""
