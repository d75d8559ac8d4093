"""Every artifact read and written: schema, streaming, atomic writes, provenance. Only this package touches h5py."""
