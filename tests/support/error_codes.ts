/**
 * Every error code that the sources can give, found by the types of TypeScript: a literal where a code
 * is expected, and a template whose parts are followed through parameters to literals. What cannot be
 * followed to its end is in `open`, so that no code slips through unread.
 */
import { join, relative } from 'node:path'
import ts from 'typescript'

export interface CodeUse {
  /** Relative to the root. */
  file: string
  line: number
  /** The words around it, for whoever writes the page. */
  text: string
}

export interface Scan {
  codes: Map<string, CodeUse[]>
  /** `file:line text` of templates that lead to no literal. */
  open: string[]
}

const CODE = /^[a-z0-9]+\/[a-z0-9-]+$/
/** Parameters, fields and conditions between a template and its literals. */
const STEPS_MAX = 8

export function scanCodes(root: string, folders: readonly string[]): Scan {
  const config = ts.parseJsonConfigFileContent(
    ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile).config,
    ts.sys,
    root,
  )
  const isOurs = (file: string): boolean =>
    folders.some((folder) => relative(root, file).startsWith(`${folder}/`))
  const program = ts.createProgram({
    rootNames: config.fileNames.filter(isOurs),
    options: { ...config.options, noEmit: true },
  })
  return new Scanner(root, program, isOurs).scan()
}

class Scanner {
  readonly #root: string
  readonly #checker: ts.TypeChecker
  readonly #files: ts.SourceFile[]
  readonly #calls = new Map<ts.Symbol, ts.NodeArray<ts.Expression>[]>()
  readonly #codes = new Map<string, CodeUse[]>()
  readonly #open: string[] = []

  constructor(root: string, program: ts.Program, isOurs: (file: string) => boolean) {
    this.#root = root
    this.#checker = program.getTypeChecker()
    this.#files = program.getSourceFiles().filter(({ fileName }) => isOurs(fileName))
  }

  scan(): Scan {
    for (const file of this.#files) this.#each(file, (node) => this.#noteCall(node))
    for (const file of this.#files) this.#each(file, (node) => this.#look(node))
    return { codes: this.#codes, open: this.#open }
  }

  #each(node: ts.Node, visit: (node: ts.Node) => void): void {
    visit(node)
    ts.forEachChild(node, (child) => this.#each(child, visit))
  }

  #noteCall(node: ts.Node): void {
    if (!ts.isCallExpression(node) && !ts.isNewExpression(node)) return
    const declaration = this.#checker.getResolvedSignature(node)?.declaration
    const symbol = declaration && this.#owner(declaration)
    if (!symbol) return
    const calls = this.#calls.get(symbol) ?? []
    calls.push(node.arguments ?? ts.factory.createNodeArray())
    this.#calls.set(symbol, calls)
  }

  /** What calls name: the function, or the class of a constructor. */
  #owner(declaration: ts.Node): ts.Symbol | undefined {
    const named = ts.isConstructorDeclaration(declaration) ? declaration.parent : declaration
    return (named as unknown as { symbol?: ts.Symbol }).symbol
  }

  #look(node: ts.Node): void {
    if (ts.isStringLiteralLike(node)) {
      if (CODE.test(node.text) && this.#wantsCode(node)) this.#add(node.text, node)
    } else if (ts.isTemplateExpression(node) && this.#wantsCode(node)) {
      for (const code of this.#texts(node, 0)) {
        if (CODE.test(code)) this.#add(code, node)
      }
    }
  }

  /** True where the type says `…/${string}`. A pattern to compare with is no use of a code. */
  #wantsCode(node: ts.Expression): boolean {
    const { parent } = node
    if (ts.isCallExpression(parent) && parent.expression.getText().endsWith('isTunnelError')) {
      return false
    }
    if (ts.isBinaryExpression(parent) && /^[!=]==$/.test(parent.operatorToken.getText())) {
      return false
    }
    if (this.#isNamedCode(node)) return true
    const type = this.#checker.getContextualType(node)
    const parts = type === undefined ? [] : type.isUnion() ? type.types : [type]
    return parts.some((part) =>
      part.isStringLiteral()
        ? CODE.test(part.value) && ts.isCallExpression(parent)
        : part.flags & ts.TypeFlags.TemplateLiteral &&
          isCodeShape((part as ts.TemplateLiteralType).texts)
    )
  }

  /** Codes that cross the wire are typed as text: a field or a parameter named `code`. */
  #isNamedCode(node: ts.Expression): boolean {
    const { parent } = node
    if (ts.isPropertyAssignment(parent)) return parent.name.getText() === 'code'
    if (!ts.isCallExpression(parent)) return false
    const at = parent.arguments.indexOf(node)
    return this.#checker.getResolvedSignature(parent)?.parameters[at]?.name === 'code'
  }

  /** All that an expression can be. */
  #texts(node: ts.Expression, steps: number): string[] {
    const type = this.#checker.getTypeAtLocation(node)
    const parts = type.isUnion() ? type.types : [type]
    if (parts.every((part) => part.isStringLiteral())) {
      return parts.map((part) => (part as ts.StringLiteralType).value)
    }
    if (steps < STEPS_MAX) {
      if (ts.isTemplateExpression(node)) {
        return node.templateSpans.reduce(
          (heads, { expression, literal }) =>
            heads.flatMap((head) =>
              this.#texts(expression, steps + 1).map((text) => head + text + literal.text)
            ),
          [node.head.text],
        )
      }
      if (ts.isConditionalExpression(node)) {
        return [node.whenTrue, node.whenFalse].flatMap((one) => this.#texts(one, steps + 1))
      }
      const found = this.#sources(node).flatMap((one) => this.#texts(one, steps + 1))
      if (found.length > 0) return found
    }
    const { line } = node.getSourceFile().getLineAndCharacterOfPosition(node.getStart())
    this.#open.push(
      `${relative(this.#root, node.getSourceFile().fileName)}:${line + 1} ${node.getText()}`,
    )
    return []
  }

  /** The expressions that a name or a field gets its value from. */
  #sources(node: ts.Expression): ts.Expression[] {
    const symbol = this.#checker.getSymbolAtLocation(
      ts.isPropertyAccessExpression(node) ? node.name : node,
    )
    return (symbol?.declarations ?? []).flatMap((declaration): ts.Expression[] => {
      if (ts.isParameter(declaration)) {
        const owner = this.#owner(declaration.parent)
        const index = declaration.parent.parameters.indexOf(declaration)
        const calls = (owner && this.#calls.get(owner)) ?? []
        const given = calls.flatMap((args) => args[index] ?? declaration.initializer ?? [])
        return given
      }
      if (ts.isBindingElement(declaration)) {
        const { parent } = declaration
        const whole = ts.isVariableDeclaration(parent.parent) && parent.parent.initializer
        return whole && ts.isArrayBindingPattern(parent)
          ? this.#items(whole, parent.elements.indexOf(declaration))
          : []
      }
      if (ts.isVariableDeclaration(declaration)) {
        return declaration.initializer ? [declaration.initializer] : []
      }
      return ts.isPropertyDeclaration(declaration) ? this.#assigned(declaration, symbol!) : []
    })
  }

  /** What stands at one place of each array that an expression can be. */
  #items(node: ts.Expression, at: number): ts.Expression[] {
    if (ts.isConditionalExpression(node)) {
      return [node.whenTrue, node.whenFalse].flatMap((one) => this.#items(one, at))
    }
    const item = ts.isArrayLiteralExpression(node) ? node.elements[at] : undefined
    return item ? [item] : []
  }

  #assigned(declaration: ts.PropertyDeclaration, symbol: ts.Symbol): ts.Expression[] {
    const found: ts.Expression[] = declaration.initializer ? [declaration.initializer] : []
    this.#each(declaration.parent, (node) => {
      if (
        ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.EqualsToken &&
        ts.isPropertyAccessExpression(node.left) &&
        this.#checker.getSymbolAtLocation(node.left.name) === symbol
      ) found.push(node.right)
    })
    return found
  }

  #add(code: string, node: ts.Node): void {
    const file = node.getSourceFile()
    const uses = this.#codes.get(code) ?? []
    uses.push({
      file: relative(this.#root, file.fileName),
      line: file.getLineAndCharacterOfPosition(node.getStart()).line + 1,
      text: node.parent.getText().replace(/\s+/g, ' ').slice(0, 400),
    })
    this.#codes.set(code, uses)
  }
}

/** `${string}/${string}` and `claim/${string}`, but no path such as `/${string}`. */
function isCodeShape(texts: readonly string[]): boolean {
  return texts.some((text) => text.includes('/')) && !texts[0]!.startsWith('/')
}
