"""Plans for machines that one does not have.  Pure arithmetic over profiles and traits.

machines   profile -> rates, memory, links of one kind of machine
parallel   bytes that a device holds, bytes that cross links    (the published forms)
predict    plan -> training step time, memory, energy, with intervals
serving    plan -> latency, memory, energy
bounds     what no plan can beat, with the arithmetic
ranking    all legal plans, best first
outlook    limits -> CANNOT, UNLIKELY, UNCLEAR, LIKELY; two machines side by side
checking   predictions against a measured table
"""
