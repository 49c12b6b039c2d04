"""Other runtimes for agents, beside which ours is measured, in an environment of their own."""
