# No C types cross this module's boundary: its public functions take and give Python objects.
