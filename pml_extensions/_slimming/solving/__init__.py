"""From conditions between sizes to slim sizes that meet all of them."""
