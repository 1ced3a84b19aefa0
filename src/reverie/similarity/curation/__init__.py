"""Which pictures and texts of a collection are worth learning from? Judged as LAION did it, on one machine or many."""
