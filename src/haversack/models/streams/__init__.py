"""Networks over several streams that come in units: encoders of a unit, aggregation over time, fusion."""
