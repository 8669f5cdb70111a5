"""What ``prune`` is made of: groups of channels that go together, which matter least, the cut."""
