"""The sample bubble: a parcel company with two back offices."""
