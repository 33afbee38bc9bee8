package org.lfm2export.kit.device

/** The ExecuTorch that this library links. A test holds it equal to the exporter's and to `kit/build.gradle.kts`. */
const val EXECUTORCH_VERSION = "1.5.1"
