package org.lfm2export.kit.bundle

/** What a user can cause, in one line that says what was wrong and what to do. */
class Refusal(message: String, cause: Throwable? = null) : Exception(message, cause)
