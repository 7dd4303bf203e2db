"""The device side of edgezo: arena, noise, session, methods, journal."""
