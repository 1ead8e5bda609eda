"""The parts of `translate`: the request, the stages of a tile, its candidates, the count of what is done."""
