package org.lfm2export.demo.device

/** The ExecuTorch that this app links. A test holds it equal to the exporter's and to `app/build.gradle.kts`. */
const val EXECUTORCH_VERSION = "1.5.1"
