"""Collections: passages, queries and relevance judgements, and where they come from."""
