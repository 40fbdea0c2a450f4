# No C types cross this module's boundary; the tar's headers are parsed in tar_index.
