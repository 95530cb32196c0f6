"""Files beyond one disk: buckets behind gs:// and s3://, and what they cannot do."""
