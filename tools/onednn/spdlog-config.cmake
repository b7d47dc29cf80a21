# Debian's oneDNN asks for spdlog, for a log file that this build leaves out: found, and nothing in it.
set(spdlog_FOUND TRUE)
