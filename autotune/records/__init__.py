"""Ground floor: pure frozen data.  Read this first: `task`, `plan`, `job`, `report`."""
