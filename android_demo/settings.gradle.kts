pluginManagement {
    repositories {
        google() // the Android Gradle plugin; nothing else comes from there
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        mavenCentral()
        google { content { includeGroupByRegex("com\\.android.*") } }
    }
}

rootProject.name = "lfm2-demo"
include(":kit", ":app")
