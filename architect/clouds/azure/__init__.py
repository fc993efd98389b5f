"""Azure: notices by Scheduled Events (`scheduled_events`)."""
