"""Methods side by side: the same teacher, rollouts, steps and tuning for each, several seeds, and a report.

`run` is the story: `cells` says what there is to do, `graph` in which order, `state` what follows from what was found;
`pool` and `worker` do the `jobs`. Every finished cell is a row (`rows`), and `report` is made from rows alone.
"""
